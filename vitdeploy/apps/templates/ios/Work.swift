import Foundation
import UIKit

/// The model, away from the screen's thread: proves itself when it is opened, and classifies photos.
actor Work {
    private var classifier: Classifier?
    private var names: [String] = []

    /// Opens the model, and says how far its outputs for a known picture are from those that vitdeploy recorded.
    func open() throws -> String {
        let opened = try Classifier(model: try file(Spec.model))
        classifier = opened
        if let url = try? file(Spec.labels) { names = labels(try String(contentsOf: url, encoding: .utf8)) }
        guard let picture = UIImage(contentsOfFile: try file(Spec.picture).path) else {
            throw PictureError(errorDescription: "\(Spec.picture) cannot be read.")
        }
        let expected = floats(try Data(contentsOf: try file(Spec.expected)))
        let error = relativeError(try opened.run(try pixels(picture)).logits, expected)
        let verdict = error <= Spec.allowed ? "Outputs proven" : "OUTPUTS DIFFER"
        return String(format: "\(verdict): largest error %.1e of the largest logit (allowed: %.1e)", error, Spec.allowed)
    }

    /// The best classes, a line each.
    func classify(_ photo: UIImage) throws -> [String] {
        guard let classifier else { throw PictureError(errorDescription: "The model is not open.") }
        return try classifier.run(try pixels(photo)).answers.map { answer in
            let name = names.indices.contains(answer.index) ? names[answer.index] : "class \(answer.index)"
            return String(format: "%.1f %%  ", 100 * answer.probability) + name
        }
    }

    private func file(_ name: String) throws -> URL {
        let parts = name.split(separator: ".", maxSplits: 1).map(String.init)
        guard let url = Bundle.main.url(forResource: parts[0], withExtension: parts[1]) else {
            throw PictureError(errorDescription: "\(name) is not in the app.")
        }
        return url
    }
}

/// A photo's pixels, upright by its orientation, in its own colours.
func pixels(_ photo: UIImage) throws -> Pixels {
    guard let image = photo.cgImage else { throw PictureError(errorDescription: "The photo has no pixels.") }
    let (width, height) = (image.width, image.height)
    var data = [UInt8](repeating: 0, count: 4 * width * height)
    let own = image.colorSpace.flatMap { $0.model == .rgb ? $0 : nil }
    let drawn = data.withUnsafeMutableBytes { bytes -> Bool in
        for space in [own, CGColorSpace(name: CGColorSpace.sRGB)] {
            guard let space, let context = CGContext(
                data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
                space: space, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { continue }
            context.draw(image, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        return false
    }
    if !drawn { throw PictureError(errorDescription: "The photo cannot be read.") }
    let whole = Pixels(width: width, height: height, channels: 4, data: data)
    return whole.upright(orientation: exif(photo.imageOrientation))
}

private func exif(_ orientation: UIImage.Orientation) -> Int {
    switch orientation {
    case .up: return 1
    case .upMirrored: return 2
    case .down: return 3
    case .downMirrored: return 4
    case .leftMirrored: return 5
    case .right: return 6
    case .rightMirrored: return 7
    case .left: return 8
    @unknown default: return 1
    }
}
