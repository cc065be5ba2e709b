import CoreML
import Foundation

/// The model in Core ML.
final class Classifier {
    private let model: MLModel

    init(model url: URL) throws {
        model = try MLModel(contentsOf: url)
    }

    func run(_ picture: Pixels) throws -> Outputs {
        let input = try prepare(picture, Spec.input)
        let array = try MLMultiArray(shape: input.shape.map { NSNumber(value: $0) }, dataType: .float32)
        array.withUnsafeMutableBytes { bytes, _ in _ = input.data.copyBytes(to: bytes) }
        let given = try MLDictionaryFeatureProvider(dictionary: ["image": MLFeatureValue(multiArray: array)])
        guard let found = try model.prediction(from: given).featureValue(for: "logits")?.multiArrayValue else {
            throw PictureError(errorDescription: "The model gives no logits.")
        }
        let logits = (0..<found.count).map { found[$0].floatValue }
        return Outputs(logits: logits, answers: best(logits, 5))
    }
}
