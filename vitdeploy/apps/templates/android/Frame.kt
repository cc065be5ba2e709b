package org.vitdeploy.classify

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.floor
import kotlin.math.min
import kotlin.math.round

// From a picture to the frame that the model takes: its preprocessing is inside it.

enum class Format { RGB, RGBA, BGRA, NV21 }

/** `height` and `width` are 0 where the model takes frames of any size. */
class FrameSpec(val format: Format, val height: Int, val width: Int)

/** uint8 (height, width, 3 or 4), or of nv21 (height * 3 / 2, width). */
fun prepare(picture: Pixels, spec: FrameSpec): Input {
    val whole = if (spec.height > 0) fit(picture, spec.height, spec.width) else picture
    return if (spec.format == Format.NV21) nv21(whole) else interleaved(whole, spec.format)
}

/** The picture fills the frame; what stands out on two sides is cut off. */
private fun fit(picture: Pixels, height: Int, width: Int): Pixels {
    val has = picture.width.toDouble() / picture.height
    val wants = width.toDouble() / height
    val across = if (has >= wants) wants * picture.height else picture.width.toDouble()
    val down = if (has >= wants) picture.height.toDouble() else picture.width / wants
    val left = (picture.width - across) * 0.5
    val top = (picture.height - down) * 0.5
    return resize(picture, height, width, Filter.BICUBIC, Span(top, top + down), Span(left, left + across))
}

private fun direct(size: Int): ByteBuffer = ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder())

private fun interleaved(picture: Pixels, format: Format): Input {
    val channels = if (format == Format.RGB) 3 else 4
    val places = if (format == Format.BGRA) intArrayOf(2, 1, 0) else intArrayOf(0, 1, 2)
    val count = picture.width * picture.height
    val out = direct(count * channels)
    for (i in 0 until count) {
        for (place in places) out.put(picture.data[4 * i + place])
        if (channels == 4) out.put(-1) // opaque
    }
    out.rewind()
    return Input(longArrayOf(picture.height.toLong(), picture.width.toLong(), channels.toLong()), out, true)
}

/** Luma, and under it V and U in turn, the mean of each 2 x 2 pixels; an odd last row or column is left out. */
private fun nv21(picture: Pixels): Input {
    val width = picture.width and 1.inv()
    val height = picture.height and 1.inv()
    require(width > 0 && height > 0) { "The picture is too small." }
    val out = direct(width * height * 3 / 2)
    val tints = FloatArray(width * height / 2)
    for (y in 0 until height) {
        for (x in 0 until width) {
            val at = 4 * (y * picture.width + x)
            val red = picture.data[at].toInt() and 255
            val green = picture.data[at + 1].toInt() and 255
            val blue = picture.data[at + 2].toInt() and 255
            out.put(((nearest(red * 0.299) + nearest(green * 0.587) + nearest(blue * 0.114)) shr 6).toByte())
            val v = (toZero(red * 0.5) + toZero(green * -0.41869) + toZero(blue * -0.08131)) shr 6
            val u = (toZero(red * -0.16874) + toZero(green * -0.33126) + toZero(blue * 0.5)) shr 6
            val tint = (y shr 1) * width + (x and 1.inv())
            tints[tint] += (128 + v) / 4f
            tints[tint + 1] += (128 + u) / 4f
        }
    }
    for (tint in tints) out.put(min(255, round(tint).toInt()).toByte())
    out.rewind()
    return Input(longArrayOf(height * 3L / 2, width.toLong()), out, true)
}

// In 64ths of a level, as Pillow has them.
private fun nearest(level: Double): Int = floor(level * 64 + 0.5).toInt()

private fun toZero(level: Double): Int = (level * 64 + 0.5).toInt()
