package org.vitdeploy.classify

import java.io.File

/** What a project's own constants make of a picture: its file of RGBA bytes, width, height, and a file for the result. */
fun main(arguments: Array<String>) {
    val picture = Pixels(arguments[1].toInt(), arguments[2].toInt(), 4, File(arguments[0]).readBytes())
    val data = prepare(picture, Spec.INPUT).data
    File(arguments[3]).writeBytes(ByteArray(data.remaining()).also { data.get(it) })
    println("${Spec.OUTPUTS} ${Spec.TOP}")
}
