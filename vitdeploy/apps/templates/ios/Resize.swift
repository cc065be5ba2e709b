import Foundation

// Pillow's resize of 8-bit pixels, step by step: across, then down, each in fixed point and rounded to whole levels.

enum Filter {
    case nearest, box, bilinear, hamming, bicubic, lanczos

    /// How far it reaches, in pixels.
    var reach: Double {
        switch self {
        case .nearest: return 0
        case .box: return 0.5
        case .bilinear, .hamming: return 1
        case .bicubic: return 2
        case .lanczos: return 3
        }
    }

    /// The weight of a pixel so far away.
    func weight(_ x: Double) -> Double {
        switch self {
        case .nearest: return 0
        case .box: return x > -0.5 && x <= 0.5 ? 1 : 0
        case .bilinear: return max(0, 1 - abs(x))
        case .hamming:
            if x == 0 { return 1 }
            return abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * cos(Double.pi * x))
        case .bicubic: return cubic(abs(x))
        case .lanczos: return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0
        }
    }
}

private let bits = 22 // of the fixed point

private func sinc(_ x: Double) -> Double {
    x == 0 ? 1 : sin(Double.pi * x) / (Double.pi * x)
}

private func cubic(_ x: Double) -> Double {
    let a = -0.5
    if x < 1 { return ((a + 2) * x - (a + 3)) * x * x + 1 }
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0
}

/// The part of a side that is resized.
struct Span {
    let start: Double
    let stop: Double
}

/// To another size; of the picture or, where spans are given, of a part of it.
func resize(
    _ from: Pixels, height: Int, width: Int, filter: Filter, down: Span? = nil, across: Span? = nil
) -> Pixels {
    if filter == .nearest { return nearest(from, height: height, width: width) }
    let down = down ?? Span(start: 0, stop: Double(from.height))
    let across = across ?? Span(start: 0, stop: Double(from.width))
    var pixels = from
    if width != from.width || across.start != 0 || across.stop != Double(width) {
        pixels = resizeAcross(pixels, taps(from.width, across, width, filter))
    }
    if height != from.height || down.start != 0 || down.stop != Double(height) {
        pixels = resizeDown(pixels, taps(from.height, down, height, filter))
    }
    return pixels
}

/// What an output place is made of: weights of the input places from `first` on.
private struct Taps {
    let first: Int
    let weights: [Int32]
}

private func taps(_ from: Int, _ span: Span, _ to: Int, _ filter: Filter) -> [Taps] {
    let scale = (span.stop - span.start) / Double(to)
    let stretch = max(scale, 1)
    let reach = filter.reach * stretch
    return (0..<to).map { i in
        let centre = span.start + (Double(i) + 0.5) * scale
        let first = max(0, Int(centre - reach + 0.5))
        let last = max(first, min(from, Int(centre + reach + 0.5)))
        let raw = (first..<last).map { filter.weight((Double($0) - centre + 0.5) * (1 / stretch)) }
        let total = raw.reduce(0, +)
        return Taps(first: first, weights: raw.map {
            let scaled = (total == 0 ? $0 : $0 / total) * Double(1 << bits)
            return Int32(scaled < 0 ? scaled - 0.5 : scaled + 0.5)
        })
    }
}

private func resizeAcross(_ from: Pixels, _ taps: [Taps]) -> Pixels {
    let channels = from.channels
    var out = [UInt8](repeating: 0, count: from.height * taps.count * channels)
    var at = 0
    from.data.withUnsafeBufferPointer { data in
        for y in 0..<from.height {
            for tap in taps {
                let start = (y * from.width + tap.first) * channels
                for c in 0..<channels {
                    out[at] = weighted(data, start + c, channels, tap.weights)
                    at += 1
                }
            }
        }
    }
    return Pixels(width: taps.count, height: from.height, channels: channels, data: out)
}

private func resizeDown(_ from: Pixels, _ taps: [Taps]) -> Pixels {
    let row = from.width * from.channels
    var out = [UInt8](repeating: 0, count: taps.count * row)
    var at = 0
    from.data.withUnsafeBufferPointer { data in
        for tap in taps {
            for x in 0..<row {
                out[at] = weighted(data, tap.first * row + x, row, tap.weights)
                at += 1
            }
        }
    }
    return Pixels(width: from.width, height: taps.count, channels: from.channels, data: out)
}

private func weighted(_ data: UnsafeBufferPointer<UInt8>, _ start: Int, _ step: Int, _ weights: [Int32]) -> UInt8 {
    var sum = Int32(1) << (bits - 1)
    var at = start
    for weight in weights {
        sum += Int32(data[at]) * weight
        at += step
    }
    return UInt8(min(255, max(0, sum >> bits)))
}

private func nearest(_ from: Pixels, height: Int, width: Int) -> Pixels {
    let columns = places(from.width, width)
    var out = [UInt8]()
    out.reserveCapacity(height * width * from.channels)
    for y in places(from.height, height) {
        for x in columns {
            let at = (y * from.width + x) * from.channels
            out.append(contentsOf: from.data[at..<(at + from.channels)])
        }
    }
    return Pixels(width: width, height: height, channels: from.channels, data: out)
}

/// Added up step by step, for the same roundings at ties.
private func places(_ from: Int, _ to: Int) -> [Int] {
    let step = Double(from) / Double(to)
    var place = step * 0.5
    return (0..<to).map { _ in
        defer { place += step }
        return Int(place)
    }
}
