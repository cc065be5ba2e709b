package org.vitdeploy.classify

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.io.File

/** The model in ONNX Runtime. To be used from one thread at a time. */
class Classifier(model: File) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session = OrtSession.SessionOptions().use { environment.createSession(model.path, it) }

    fun run(picture: Pixels): Outputs = tensor(prepare(picture, Spec.INPUT)).use { given ->
        session.run(mapOf("image" to given), Spec.OUTPUTS).use { results ->
            val logits = floats(results, "logits")
            Outputs(logits, if (Spec.TOP > 0) told(results) else best(logits, 5))
        }
    }

    private fun tensor(input: Input): OnnxTensor =
        if (input.levels) {
            OnnxTensor.createTensor(environment, input.data, input.shape, OnnxJavaType.UINT8)
        } else {
            OnnxTensor.createTensor(environment, input.data.asFloatBuffer(), input.shape)
        }

    /** The best classes as the model itself tells them. */
    private fun told(results: OrtSession.Result): List<Answer> {
        val scores = floats(results, "scores")
        val indices = output(results, "indices").longBuffer
        return scores.indices.map { Answer(indices.get(it).toInt(), scores[it]) }
    }

    private fun floats(results: OrtSession.Result, name: String): FloatArray {
        val buffer = output(results, name).floatBuffer
        return FloatArray(buffer.remaining()).also { buffer.get(it) }
    }

    private fun output(results: OrtSession.Result, name: String): OnnxTensor = results.get(name).get() as OnnxTensor

    override fun close() = session.close()
}
