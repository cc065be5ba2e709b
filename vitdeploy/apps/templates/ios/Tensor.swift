import Foundation

// From a picture to the model's input: resize, crop around the centre, normalise.

enum Crop {
    case center, squash, border
}

/// How pictures become tensors.
///
/// `resizedHeight` and `resizedWidth` are what is cropped from; `fill` are the levels around a picture that is smaller;
/// `mean` and `std` are of pixels scaled to 0 to 1. Each has a value for each channel.
struct TensorSpec {
    let height: Int
    let width: Int
    let resizedHeight: Int
    let resizedWidth: Int
    let crop: Crop
    let filter: Filter
    let fill: [UInt8]
    let mean: [Float]
    let std: [Float]
}

private let mostPixels = 89_478_485 // as Pillow has it

/// float32 (1, channels, height, width).
func prepare(_ picture: Pixels, _ spec: TensorSpec) throws -> Input {
    let channels = spec.mean.count
    let (toHeight, toWidth) = resizedSize(picture.height, picture.width, spec)
    if toHeight * toWidth > mostPixels { throw PictureError(errorDescription: "The picture is too elongated.") }
    let resized = resize(channels == 1 ? grey(picture) : picture, height: toHeight, width: toWidth, filter: spec.filter)
    let top = offset(spec.height, resized.height)
    let left = offset(spec.width, resized.width)
    var out = [Float]()
    out.reserveCapacity(channels * spec.height * spec.width)
    for c in 0..<channels {
        for y in 0..<spec.height {
            for x in 0..<spec.width {
                let (fromY, fromX) = (y - top, x - left)
                let inside = fromY >= 0 && fromY < resized.height && fromX >= 0 && fromX < resized.width
                let at = (fromY * resized.width + fromX) * resized.channels + c
                let level = inside ? resized.data[at] : spec.fill[c]
                out.append((Float(level) / 255 - spec.mean[c]) / spec.std[c])
            }
        }
    }
    let bytes = out.withUnsafeBytes { Data($0) }
    return Input(shape: [1, channels, spec.height, spec.width], data: bytes, levels: false)
}

/// Height and width before the crop. A square one truncates the long side, any other rounds both half to even.
private func resizedSize(_ height: Int, _ width: Int, _ spec: TensorSpec) -> (Int, Int) {
    let (toHeight, toWidth) = (Double(spec.resizedHeight), Double(spec.resizedWidth))
    if spec.crop == .squash { return (spec.resizedHeight, spec.resizedWidth) }
    if spec.crop == .center && toHeight == toWidth {
        let short = Double(min(height, width))
        return (Int(toHeight * Double(height) / short), Int(toWidth * Double(width) / short))
    }
    let (down, across) = (Double(height) / toHeight, Double(width) / toWidth)
    let ratio = spec.crop == .border ? max(down, across) : min(down, across)
    return (max(1, even(Double(height) / ratio)), max(1, even(Double(width) / ratio)))
}

/// Half to even.
private func even(_ x: Double) -> Int {
    Int(x.rounded(.toNearestOrEven))
}

/// Where the picture's edge lies on a centred canvas.
private func offset(_ target: Int, _ side: Int) -> Int {
    target > side ? (target - side) / 2 : -even(Double(side - target) / 2)
}

private func grey(_ picture: Pixels) -> Pixels {
    var out = [UInt8]()
    out.reserveCapacity(picture.width * picture.height)
    for i in 0..<(picture.width * picture.height) {
        let red = Int(picture.data[4 * i]) * 19595
        let green = Int(picture.data[4 * i + 1]) * 38470
        let blue = Int(picture.data[4 * i + 2]) * 7471
        out.append(UInt8((red + green + blue + 0x8000) >> 16))
    }
    return Pixels(width: picture.width, height: picture.height, channels: 1, data: out)
}
