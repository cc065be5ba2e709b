package org.vitdeploy.classify

import kotlin.math.PI
import kotlin.math.abs
import kotlin.math.cos
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import kotlin.math.sin

// Pillow's resize of 8-bit pixels, step by step: across, then down, each in fixed point and rounded to whole levels.

/** How far a filter reaches, in pixels, and what weight it gives to a pixel so far away. */
enum class Filter(val reach: Double, val weight: (Double) -> Double) {
    NEAREST(0.0, { 0.0 }),
    BOX(0.5, { x -> if (x > -0.5 && x <= 0.5) 1.0 else 0.0 }),
    BILINEAR(1.0, { x -> max(0.0, 1 - abs(x)) }),
    HAMMING(1.0, { x ->
        if (x == 0.0) 1.0 else if (abs(x) >= 1) 0.0 else sinc(x) * (0.54 + 0.46 * cos(PI * x))
    }),
    BICUBIC(2.0, { x -> bicubic(abs(x)) }),
    LANCZOS(3.0, { x -> if (x >= -3 && x < 3) sinc(x) * sinc(x / 3) else 0.0 }),
}

private const val BITS = 22 // of the fixed point

private fun sinc(x: Double): Double = if (x == 0.0) 1.0 else sin(PI * x) / (PI * x)

private fun bicubic(x: Double): Double {
    val a = -0.5
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1
    return if (x < 2) (((x - 5) * x + 8) * x - 4) * a else 0.0
}

/** The part of a side that is resized: all of it, or a box. */
class Span(val start: Double, val stop: Double)

/** To another size; of the picture or, where spans are given, of a part of it. */
fun resize(
    from: Pixels,
    height: Int,
    width: Int,
    filter: Filter,
    down: Span = Span(0.0, from.height.toDouble()),
    across: Span = Span(0.0, from.width.toDouble()),
): Pixels {
    if (filter == Filter.NEAREST) return nearest(from, height, width)
    var pixels = from
    if (width != from.width || across.start != 0.0 || across.stop != width.toDouble()) {
        pixels = resizeAcross(pixels, taps(from.width, across, width, filter))
    }
    if (height != from.height || down.start != 0.0 || down.stop != height.toDouble()) {
        pixels = resizeDown(pixels, taps(from.height, down, height, filter))
    }
    return pixels
}

/** What an output place is made of: weights of the input places from `first` on. */
private class Taps(val first: Int, val weights: IntArray)

private fun taps(from: Int, span: Span, to: Int, filter: Filter): Array<Taps> {
    val scale = (span.stop - span.start) / to
    val stretch = max(scale, 1.0)
    val reach = filter.reach * stretch
    return Array(to) { i ->
        val centre = span.start + (i + 0.5) * scale
        val first = max(0, (centre - reach + 0.5).toInt())
        val last = min(from, (centre + reach + 0.5).toInt())
        val raw = DoubleArray(max(0, last - first)) { filter.weight((it + first - centre + 0.5) * (1 / stretch)) }
        val total = raw.sum()
        Taps(first, IntArray(raw.size) {
            val scaled = (if (total == 0.0) raw[it] else raw[it] / total) * (1 shl BITS)
            (if (scaled < 0) scaled - 0.5 else scaled + 0.5).toInt()
        })
    }
}

private fun resizeAcross(from: Pixels, taps: Array<Taps>): Pixels {
    val channels = from.channels
    val out = ByteArray(from.height * taps.size * channels)
    var at = 0
    for (y in 0 until from.height) {
        for (tap in taps) {
            val start = (y * from.width + tap.first) * channels
            for (c in 0 until channels) out[at++] = weighted(from.data, start + c, channels, tap.weights)
        }
    }
    return Pixels(taps.size, from.height, channels, out)
}

private fun resizeDown(from: Pixels, taps: Array<Taps>): Pixels {
    val row = from.width * from.channels
    val out = ByteArray(taps.size * row)
    var at = 0
    for (tap in taps) {
        for (x in 0 until row) out[at++] = weighted(from.data, tap.first * row + x, row, tap.weights)
    }
    return Pixels(from.width, taps.size, from.channels, out)
}

private fun weighted(data: ByteArray, start: Int, step: Int, weights: IntArray): Byte {
    var sum = 1 shl (BITS - 1)
    var at = start
    for (weight in weights) {
        sum += (data[at].toInt() and 255) * weight
        at += step
    }
    return (sum shr BITS).coerceIn(0, 255).toByte()
}

private fun nearest(from: Pixels, height: Int, width: Int): Pixels {
    val rows = places(from.height, height)
    val columns = places(from.width, width)
    val channels = from.channels
    val out = ByteArray(height * width * channels)
    var at = 0
    for (y in rows) {
        for (x in columns) {
            for (c in 0 until channels) out[at++] = from.data[(y * from.width + x) * channels + c]
        }
    }
    return Pixels(width, height, channels, out)
}

/** Added up step by step, for the same roundings at ties. */
private fun places(from: Int, to: Int): IntArray {
    val step = from.toDouble() / to
    var place = step * 0.5
    return IntArray(to) { floor(place).toInt().also { place += step } }
}
