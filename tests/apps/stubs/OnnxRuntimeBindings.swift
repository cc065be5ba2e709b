// What the iOS app calls of ONNX Runtime's Swift package: declarations for a compiler.
import Foundation

public enum ORTLoggingLevel { case warning }
public enum ORTTensorElementDataType { case float, uInt8, int64 }
public final class ORTSessionOptions {}
public final class ORTRunOptions {}

public final class ORTEnv {
    public init(loggingLevel: ORTLoggingLevel) throws {}
}

public final class ORTValue {
    public init(tensorData: NSMutableData, elementType: ORTTensorElementDataType, shape: [NSNumber]) throws {}
    public func tensorData() throws -> NSMutableData { NSMutableData() }
}

public final class ORTSession {
    public init(env: ORTEnv, modelPath: String, sessionOptions: ORTSessionOptions?) throws {}
    public func run(
        withInputs: [String: ORTValue], outputNames: Set<String>, runOptions: ORTRunOptions?
    ) throws -> [String: ORTValue] { [:] }
}
