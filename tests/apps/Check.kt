package org.vitdeploy.classify

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Runs cases, one a line: what, file of RGBA bytes, width, height, file for the result, and what is wanted. */
fun main(arguments: Array<String>) {
    for (line in File(arguments[0]).readLines()) {
        val words = line.split(" ")
        val picture = Pixels(words[2].toInt(), words[3].toInt(), 4, File(words[1]).readBytes())
        File(words[4]).writeBytes(bytesOf(made(words[0], picture, words.drop(5)).data))
    }
    val odds = best(floatArrayOf(1f, 3f, 3f, 2f), 3)
    check(odds.map { it.index } == listOf(1, 2, 3))
    check(relativeError(floatArrayOf(1f, -2f), floatArrayOf(1f, -4f)) == 0.5)
    check(relativeError(floatArrayOf(Float.NaN), floatArrayOf(1f)).isInfinite())
    check(labels("a\n\nb c\n") == listOf("a", "", "b c"))
    println("done")
}

private fun made(what: String, picture: Pixels, words: List<String>): Input {
    if (what == "frame") {
        return prepare(picture, FrameSpec(Format.valueOf(words[0].uppercase()), words[1].toInt(), words[2].toInt()))
    }
    val (height, width, toHeight, toWidth) = words.map { it.toIntOrNull() ?: 0 }
    val spec = TensorSpec(
        height, width, toHeight, toWidth,
        Crop.valueOf(words[4].uppercase()),
        Filter.valueOf(words[5].uppercase()),
        words[6].split(",").map { it.toInt() }.toIntArray(),
        words[7].split(",").map { it.toFloat() }.toFloatArray(),
        words[8].split(",").map { it.toFloat() }.toFloatArray(),
    )
    return prepare(picture, spec)
}

private fun bytesOf(data: ByteBuffer): ByteArray {
    check(data.isDirect && data.order() == ByteOrder.nativeOrder() && data.position() == 0)
    return ByteArray(data.remaining()).also { data.get(it) }
}
