import Foundation

// From a picture to the frame that the model takes: its preprocessing is inside it.

enum Format {
    case rgb, rgba, bgra, nv21
}

/// `height` and `width` are 0 where the model takes frames of any size.
struct FrameSpec {
    let format: Format
    let height: Int
    let width: Int
}

/// uint8 (height, width, 3 or 4), or of nv21 (height * 3 / 2, width).
func prepare(_ picture: Pixels, _ spec: FrameSpec) throws -> Input {
    let whole = spec.height > 0 ? fit(picture, spec.height, spec.width) : picture
    return spec.format == .nv21 ? try nv21(whole) : interleaved(whole, spec.format)
}

/// The picture fills the frame; what stands out on two sides is cut off.
private func fit(_ picture: Pixels, _ height: Int, _ width: Int) -> Pixels {
    let (fromWidth, fromHeight) = (Double(picture.width), Double(picture.height))
    let has = fromWidth / fromHeight
    let wants = Double(width) / Double(height)
    let across = has >= wants ? wants * fromHeight : fromWidth
    let down = has >= wants ? fromHeight : fromWidth / wants
    let (left, top) = ((fromWidth - across) * 0.5, (fromHeight - down) * 0.5)
    return resize(
        picture, height: height, width: width, filter: .bicubic,
        down: Span(start: top, stop: top + down), across: Span(start: left, stop: left + across))
}

private func interleaved(_ picture: Pixels, _ format: Format) -> Input {
    let channels = format == .rgb ? 3 : 4
    let places = format == .bgra ? [2, 1, 0] : [0, 1, 2]
    var out = [UInt8](repeating: 255, count: picture.width * picture.height * channels)
    for i in 0..<(picture.width * picture.height) {
        for (c, place) in places.enumerated() { out[channels * i + c] = picture.data[4 * i + place] }
    }
    return Input(shape: [picture.height, picture.width, channels], data: Data(out), levels: true)
}

/// Luma, and under it V and U in turn, the mean of each 2 x 2 pixels; an odd last row or column is left out.
private func nv21(_ picture: Pixels) throws -> Input {
    let (width, height) = (picture.width & ~1, picture.height & ~1)
    if width == 0 || height == 0 { throw PictureError(errorDescription: "The picture is too small.") }
    var out = [UInt8]()
    out.reserveCapacity(width * height * 3 / 2)
    var tints = [Float](repeating: 0, count: width * height / 2)
    for y in 0..<height {
        for x in 0..<width {
            let at = 4 * (y * picture.width + x)
            let red = Double(picture.data[at])
            let green = Double(picture.data[at + 1])
            let blue = Double(picture.data[at + 2])
            let luma: Int = nearest(red * 0.299) + nearest(green * 0.587) + nearest(blue * 0.114)
            let v: Int = toZero(red * 0.5) + toZero(green * -0.41869) + toZero(blue * -0.08131)
            let u: Int = toZero(red * -0.16874) + toZero(green * -0.33126) + toZero(blue * 0.5)
            out.append(UInt8(luma >> 6))
            let tint = (y >> 1) * width + (x & ~1)
            tints[tint] += Float(128 + (v >> 6)) / 4
            tints[tint + 1] += Float(128 + (u >> 6)) / 4
        }
    }
    out.append(contentsOf: tints.map { UInt8(min(255, $0.rounded(.toNearestOrEven))) })
    return Input(shape: [height * 3 / 2, width], data: Data(out), levels: true)
}

// In 64ths of a level, as Pillow has them.
private func nearest(_ level: Double) -> Int {
    Int((level * 64 + 0.5).rounded(.down))
}

private func toZero(_ level: Double) -> Int {
    Int(level * 64 + 0.5)
}
