package org.vitdeploy.classify

import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.max
import kotlin.math.min
import kotlin.math.round

// From a picture to the model's input: resize, crop around the centre, normalise.

enum class Crop { CENTER, SQUASH, BORDER }

/**
 * How pictures become tensors.
 *
 * `resizedHeight` and `resizedWidth` are what is cropped from; `fill` are the levels around a picture that is smaller;
 * `mean` and `std` are of pixels scaled to 0 to 1. Each has a value for each channel.
 */
class TensorSpec(
    val height: Int,
    val width: Int,
    val resizedHeight: Int,
    val resizedWidth: Int,
    val crop: Crop,
    val filter: Filter,
    val fill: IntArray,
    val mean: FloatArray,
    val std: FloatArray,
)

private const val MOST_PIXELS = 89_478_485L // as Pillow has it

/** float32 (1, channels, height, width). */
fun prepare(picture: Pixels, spec: TensorSpec): Input {
    val channels = spec.mean.size
    val (toHeight, toWidth) = resizedSize(picture.height, picture.width, spec)
    require(toHeight.toLong() * toWidth <= MOST_PIXELS) { "The picture is too elongated." }
    val resized = resize(if (channels == 1) grey(picture) else picture, toHeight, toWidth, spec.filter)
    val top = offset(spec.height, resized.height)
    val left = offset(spec.width, resized.width)
    val bytes = ByteBuffer.allocateDirect(4 * channels * spec.height * spec.width).order(ByteOrder.nativeOrder())
    val out = bytes.asFloatBuffer()
    for (c in 0 until channels) {
        for (y in 0 until spec.height) {
            for (x in 0 until spec.width) {
                val fromY = y - top
                val fromX = x - left
                val inside = fromY >= 0 && fromY < resized.height && fromX >= 0 && fromX < resized.width
                val at = (fromY * resized.width + fromX) * resized.channels + c
                val level = if (inside) resized.data[at].toInt() and 255 else spec.fill[c]
                out.put((level.toFloat() / 255f - spec.mean[c]) / spec.std[c])
            }
        }
    }
    return Input(longArrayOf(1, channels.toLong(), spec.height.toLong(), spec.width.toLong()), bytes, false)
}

/** Height and width before the crop. A square one truncates the long side, any other rounds both half to even. */
private fun resizedSize(height: Int, width: Int, spec: TensorSpec): Pair<Int, Int> {
    val toHeight = spec.resizedHeight
    val toWidth = spec.resizedWidth
    if (spec.crop == Crop.SQUASH) return Pair(toHeight, toWidth)
    if (spec.crop == Crop.CENTER && toHeight == toWidth) {
        val short = min(height, width)
        return Pair((toHeight.toDouble() * height / short).toInt(), (toWidth.toDouble() * width / short).toInt())
    }
    val down = height.toDouble() / toHeight
    val across = width.toDouble() / toWidth
    val ratio = if (spec.crop == Crop.BORDER) max(down, across) else min(down, across)
    return Pair(max(1, round(height / ratio).toInt()), max(1, round(width / ratio).toInt()))
}

/** Where the picture's edge lies on a centred canvas. */
private fun offset(target: Int, side: Int): Int =
    if (target > side) (target - side) / 2 else -round((side - target) / 2.0).toInt()

private fun grey(picture: Pixels): Pixels {
    val out = ByteArray(picture.width * picture.height) {
        val red = picture.data[4 * it].toInt() and 255
        val green = picture.data[4 * it + 1].toInt() and 255
        val blue = picture.data[4 * it + 2].toInt() and 255
        ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) shr 16).toByte()
    }
    return Pixels(picture.width, picture.height, 1, out)
}
