import Foundation

/// A class by its place among the logits, and its probability.
struct Answer {
    let index: Int
    let probability: Float
}

/// What the model gives for a picture: its logits, and the best classes, best first.
struct Outputs {
    let logits: [Float]
    let answers: [Answer]
}

/// Softmax, and the `count` best.
func best(_ logits: [Float], _ count: Int) -> [Answer] {
    let largest = Double(logits.max() ?? 0)
    let odds = logits.map { exp(Double($0) - largest) }
    let total = odds.reduce(0, +)
    let order = odds.indices.sorted { odds[$0] == odds[$1] ? $0 < $1 : odds[$0] > odds[$1] }
    return order.prefix(count).map { Answer(index: $0, probability: Float(odds[$0] / total)) }
}

/// The largest difference, relative to the largest expected value; not a number counts as infinitely far.
func relativeError(_ found: [Float], _ expected: [Float]) -> Double {
    if found.count != expected.count || found.isEmpty || !found.allSatisfy({ $0.isFinite }) { return .infinity }
    let largest = expected.reduce(0) { max($0, abs($1)) }
    let difference = zip(found, expected).reduce(0) { max($0, abs(Double($1.0) - Double($1.1))) }
    return difference / Double(largest)
}

/// One label a line.
func labels(_ text: String) -> [String] {
    var lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
    if lines.last == "" { lines.removeLast() }
    return lines
}

/// float32 as it lies in memory.
func floats(_ data: Data) -> [Float] {
    var out = [Float](repeating: 0, count: data.count / 4)
    _ = out.withUnsafeMutableBytes { data.copyBytes(to: $0) }
    return out
}
