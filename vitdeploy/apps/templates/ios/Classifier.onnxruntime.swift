import Foundation
import OnnxRuntimeBindings

/// The model in ONNX Runtime.
final class Classifier {
    private let environment: ORTEnv
    private let session: ORTSession

    init(model: URL) throws {
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: model.path, sessionOptions: nil)
    }

    func run(_ picture: Pixels) throws -> Outputs {
        let input = try prepare(picture, Spec.input)
        let tensor = try ORTValue(
            tensorData: NSMutableData(data: input.data),
            elementType: input.levels ? .uInt8 : .float,
            shape: input.shape.map { NSNumber(value: $0) })
        let results = try session.run(withInputs: ["image": tensor], outputNames: Set(Spec.outputs), runOptions: nil)
        let logits = floats(try bytes(results, "logits"))
        return Outputs(logits: logits, answers: Spec.top > 0 ? try told(results) : best(logits, 5))
    }

    /// The best classes as the model itself tells them.
    private func told(_ results: [String: ORTValue]) throws -> [Answer] {
        let scores = floats(try bytes(results, "scores"))
        let raw = try bytes(results, "indices")
        var indices = [Int64](repeating: 0, count: raw.count / 8)
        _ = indices.withUnsafeMutableBytes { raw.copyBytes(to: $0) }
        return zip(indices, scores).map { Answer(index: Int($0), probability: $1) }
    }

    private func bytes(_ results: [String: ORTValue], _ name: String) throws -> Data {
        guard let value = results[name] else { throw PictureError(errorDescription: "The model gives no \(name).") }
        return Data(referencing: try value.tensorData())
    }
}
