import Foundation

/// What a project's own constants make of a picture: its file of RGBA bytes, width, height, and a file for the result.
@main
struct Given {
    static func main() throws {
        let words = CommandLine.arguments
        let data = [UInt8](try Data(contentsOf: URL(fileURLWithPath: words[1])))
        let picture = Pixels(width: Int(words[2])!, height: Int(words[3])!, channels: 4, data: data)
        try prepare(picture, Spec.input).data.write(to: URL(fileURLWithPath: words[4]))
        print("[\(Spec.outputs.joined(separator: ", "))] \(Spec.top)")
    }
}
