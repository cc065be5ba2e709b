package org.vitdeploy.classify

import java.nio.ByteBuffer

/** Pixels of `channels` bytes each, row by row. A picture has 4: red, green, blue and one that is not looked at. */
class Pixels(val width: Int, val height: Int, val channels: Int, val data: ByteArray)

/** What the model is given: float32, or uint8 where `levels`; direct and in native order. */
class Input(val shape: LongArray, val data: ByteBuffer, val levels: Boolean)
