import Foundation

/// Runs cases, one a line: what, file of RGBA bytes, width, height, file for the result, and what is wanted.
@main
struct Check {
    static func main() throws {
        for line in try String(contentsOfFile: CommandLine.arguments[1], encoding: .utf8).split(separator: "\n") {
            let words = line.split(separator: " ").map(String.init)
            let data = try Data(contentsOf: URL(fileURLWithPath: words[1]))
            let picture = Pixels(width: Int(words[2])!, height: Int(words[3])!, channels: 4, data: [UInt8](data))
            let wanted = Array(words.dropFirst(5))
            try made(words[0], picture, wanted).write(to: URL(fileURLWithPath: words[4]))
        }
        precondition(best([1, 3, 3, 2], 3).map(\.index) == [1, 2, 3])
        precondition(relativeError([1, -2], [1, -4]) == 0.5)
        precondition(relativeError([.nan], [1]) == .infinity)
        precondition(labels("a\n\nb c\n") == ["a", "", "b c"])
        precondition(floats(Data([0, 0, 128, 63])) == [1])
        print("done")
    }

    static func made(_ what: String, _ picture: Pixels, _ words: [String]) throws -> Data {
        if what == "upright" { return Data(picture.upright(orientation: Int(words[0])!).data) }
        if what == "frame" {
            let formats: [String: Format] = ["rgb": .rgb, "rgba": .rgba, "bgra": .bgra, "nv21": .nv21]
            let spec = FrameSpec(format: formats[words[0]]!, height: Int(words[1])!, width: Int(words[2])!)
            return try prepare(picture, spec).data
        }
        let crops: [String: Crop] = ["center": .center, "squash": .squash, "border": .border]
        let filters: [String: Filter] = [
            "nearest": .nearest, "box": .box, "bilinear": .bilinear, "hamming": .hamming, "bicubic": .bicubic,
            "lanczos": .lanczos,
        ]
        func floats(_ text: String) -> [Float] { text.split(separator: ",").map { Float($0)! } }
        let spec = TensorSpec(
            height: Int(words[0])!, width: Int(words[1])!, resizedHeight: Int(words[2])!, resizedWidth: Int(words[3])!,
            crop: crops[words[4]]!, filter: filters[words[5]]!, fill: floats(words[6]).map { UInt8($0) },
            mean: floats(words[7]), std: floats(words[8]))
        return try prepare(picture, spec).data
    }
}
