package org.vitdeploy.classify

import kotlin.math.abs
import kotlin.math.exp

/** A class by its place among the logits, and its probability. */
class Answer(val index: Int, val probability: Float)

/** What the model gives for a picture: its logits, and the best classes, best first. */
class Outputs(val logits: FloatArray, val answers: List<Answer>)

/** Softmax, and the `count` best. */
fun best(logits: FloatArray, count: Int): List<Answer> {
    val largest = logits.max()
    val odds = DoubleArray(logits.size) { exp(logits[it].toDouble() - largest) }
    val total = odds.sum()
    return odds.indices.sortedByDescending { odds[it] }.take(count).map { Answer(it, (odds[it] / total).toFloat()) }
}

/** The largest difference, relative to the largest expected value; not a number counts as infinitely far. */
fun relativeError(found: FloatArray, expected: FloatArray): Double {
    if (found.size != expected.size || found.any { !it.isFinite() }) return Double.POSITIVE_INFINITY
    val largest = expected.maxOf { abs(it) }
    return found.indices.maxOf { abs(found[it].toDouble() - expected[it]) } / largest
}

/** One label a line. */
fun labels(text: String): List<String> = text.removeSuffix("\n").split("\n")
