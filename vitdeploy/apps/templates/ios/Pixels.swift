import Foundation

/// Pixels of `channels` bytes each, row by row. A picture has 4: red, green, blue and one that is not looked at.
struct Pixels {
    let width: Int
    let height: Int
    let channels: Int
    let data: [UInt8]

    /// Turned as an EXIF orientation, 1 to 8, says that it is to be shown.
    func upright(orientation: Int) -> Pixels {
        if !(2...8).contains(orientation) { return self }
        let turned = orientation >= 5
        let (toWidth, toHeight) = turned ? (height, width) : (width, height)
        var out = [UInt8](repeating: 0, count: data.count)
        for y in 0..<toHeight {
            for x in 0..<toWidth {
                let (fromX, fromY): (Int, Int)
                switch orientation {
                case 2: (fromX, fromY) = (width - 1 - x, y)
                case 3: (fromX, fromY) = (width - 1 - x, height - 1 - y)
                case 4: (fromX, fromY) = (x, height - 1 - y)
                case 5: (fromX, fromY) = (y, x)
                case 6: (fromX, fromY) = (y, height - 1 - x)
                case 7: (fromX, fromY) = (width - 1 - y, height - 1 - x)
                default: (fromX, fromY) = (width - 1 - y, x)
                }
                let (at, from) = ((y * toWidth + x) * channels, (fromY * width + fromX) * channels)
                for c in 0..<channels { out[at + c] = data[from + c] }
            }
        }
        return Pixels(width: toWidth, height: toHeight, channels: channels, data: out)
    }
}

/// What a picture cannot be used for.
struct PictureError: LocalizedError {
    let errorDescription: String?
}

/// What the model is given.
struct Input {
    let shape: [Int]
    let data: Data
    /// uint8; else float32.
    let levels: Bool
}
