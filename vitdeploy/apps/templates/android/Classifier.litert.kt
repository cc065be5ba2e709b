package org.vitdeploy.classify

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import org.tensorflow.lite.DataType
import org.tensorflow.lite.Interpreter

/** The model in LiteRT. To be used from one thread at a time. */
class Classifier(model: File) : AutoCloseable {
    private val interpreter = Interpreter(model, Interpreter.Options().setNumThreads(4))
    private val signature = interpreter.signatureKeys.single()

    fun run(picture: Pixels): Outputs {
        val input = prepare(picture, Spec.INPUT)
        val results: Map<String, ByteBuffer> = Spec.OUTPUTS.associateWith { name ->
            val bytes = interpreter.getOutputTensorFromSignature(name, signature).numBytes()
            ByteBuffer.allocateDirect(bytes).order(ByteOrder.nativeOrder())
        }
        interpreter.runSignature(mapOf<String, Any>("image" to input.data), results, signature)
        results.values.forEach { it.rewind() }
        val logits = floats(results.getValue("logits"))
        return Outputs(logits, if (Spec.TOP > 0) told(results) else best(logits, 5))
    }

    /** The best classes as the model itself tells them. */
    private fun told(results: Map<String, ByteBuffer>): List<Answer> {
        val scores = floats(results.getValue("scores"))
        val indices = results.getValue("indices")
        val wide = interpreter.getOutputTensorFromSignature("indices", signature).dataType() == DataType.INT64
        return scores.indices.map {
            Answer(if (wide) indices.getLong(8 * it).toInt() else indices.getInt(4 * it), scores[it])
        }
    }

    private fun floats(bytes: ByteBuffer): FloatArray {
        val buffer = bytes.asFloatBuffer()
        return FloatArray(buffer.remaining()).also { buffer.get(it) }
    }

    override fun close() = interpreter.close()
}
