package org.vitdeploy.classify

import android.app.Activity
import android.content.ActivityNotFoundException
import android.content.Intent
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.ImageDecoder
import android.os.Bundle
import android.provider.MediaStore
import android.view.View
import android.view.Window
import android.widget.Button
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ScrollView
import android.widget.TextView
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Locale
import java.util.concurrent.Executors
import kotlin.math.max
import kotlin.math.min

/** Classifies a photo that is chosen or taken, after the model has proven itself on a known picture. */
class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor() // the model is its own
    private var classifier: Classifier? = null
    private var names: List<String> = emptyList()
    private lateinit var photo: ImageView
    private lateinit var answers: TextView
    private lateinit var proof: TextView
    private lateinit var buttons: List<Button>

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        requestWindowFeature(Window.FEATURE_NO_TITLE)
        setContentView(page())
        worker.execute { start() }
    }

    override fun onDestroy() {
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    private fun page(): View {
        val space = (16 * resources.displayMetrics.density).toInt()
        photo = ImageView(this).apply { adjustViewBounds = true }
        answers = TextView(this).apply { textSize = 18f }
        proof = TextView(this).apply { text = getString(R.string.opening) }
        buttons = listOf(
            button(R.string.choose) { choose() },
            button(R.string.take) { take() },
        )
        val column = LinearLayout(this).apply {
            orientation = LinearLayout.VERTICAL
            setPadding(space, space, space, space)
            for (view in buttons + listOf(photo, answers, proof)) addView(view)
        }
        return ScrollView(this).apply {
            fitsSystemWindows = true
            addView(column)
        }
    }

    private fun button(text: Int, then: () -> Unit) = Button(this).apply {
        setText(text)
        isEnabled = false
        setOnClickListener { then() }
    }

    /** Opens the model and proves it. On the worker's thread, as everything that touches the model. */
    private fun start() = tell {
        val model = unpacked()
        val opened = Classifier(model)
        classifier = opened
        names = asset(Spec.LABELS)?.let { labels(it.decodeToString()) } ?: emptyList()
        val (error, passed) = proven(opened)
        val text = getString(
            if (passed) R.string.proven else R.string.not_proven,
            String.format(Locale.ROOT, "%.1e", error),
            String.format(Locale.ROOT, "%.1e", Spec.ALLOWED),
        )
        runOnUiThread {
            proof.text = text
            buttons.forEach { it.isEnabled = true }
        }
    }

    /** The known picture's outputs against those that vitdeploy recorded. */
    private fun proven(classifier: Classifier): Pair<Double, Boolean> {
        val png = checkNotNull(asset(Spec.PICTURE))
        val options = BitmapFactory.Options().apply { inScaled = false }
        val picture = pixels(checkNotNull(BitmapFactory.decodeByteArray(png, 0, png.size, options)))
        val recorded = ByteBuffer.wrap(checkNotNull(asset(Spec.EXPECTED))).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
        val expected = FloatArray(recorded.remaining()).also { recorded.get(it) }
        val error = relativeError(classifier.run(picture).logits, expected)
        return Pair(error, error <= Spec.ALLOWED)
    }

    /** The model as a file of its own, which runtimes open without holding it in memory twice. */
    private fun unpacked(): File {
        val file = File(noBackupFilesDir, Spec.UNPACKED)
        if (file.exists()) return file
        noBackupFilesDir.listFiles()?.forEach { it.delete() } // an older version's
        val part = File(noBackupFilesDir, "part")
        assets.open(Spec.MODEL).use { from -> part.outputStream().use { from.copyTo(it) } }
        check(part.renameTo(file)) { "The model cannot be stored." }
        return file
    }

    private fun asset(name: String): ByteArray? =
        if (name in assets.list("").orEmpty()) assets.open(name).use { it.readBytes() } else null

    private fun choose() = launch(Intent(Intent.ACTION_GET_CONTENT).setType("image/*"), CHOOSE)

    private fun take() {
        val target = Intent(MediaStore.ACTION_IMAGE_CAPTURE).putExtra(MediaStore.EXTRA_OUTPUT, PhotoProvider.uri(this))
        target.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION or Intent.FLAG_GRANT_WRITE_URI_PERMISSION)
        launch(target, TAKE)
    }

    private fun launch(intent: Intent, request: Int) {
        try {
            startActivityForResult(intent, request)
        } catch (_: ActivityNotFoundException) {
            answers.setText(R.string.no_app)
        }
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        if (result != RESULT_OK) return
        val taken = PhotoProvider.file(this)
        val chosen = data?.data
        val source = when {
            request == TAKE -> ImageDecoder.createSource(taken)
            chosen != null -> ImageDecoder.createSource(contentResolver, chosen)
            else -> return
        }
        worker.execute {
            tell { classify(source) }
            if (request == TAKE) taken.delete()
        }
    }

    private fun classify(source: ImageDecoder.Source) {
        val bitmap = decode(source)
        val outputs = checkNotNull(classifier).run(pixels(bitmap))
        val lines = outputs.answers.map {
            val name = names.getOrNull(it.index) ?: getString(R.string.unnamed, it.index)
            String.format(Locale.getDefault(), "%.1f %%  %s", 100 * it.probability, name)
        }
        val small = thumbnail(bitmap)
        runOnUiThread {
            photo.setImageBitmap(small)
            answers.text = lines.joinToString("\n")
        }
    }

    /** Upright by its EXIF orientation, which ImageDecoder sees to, in the photo's own colours. */
    private fun decode(source: ImageDecoder.Source): Bitmap = ImageDecoder.decodeBitmap(source) { decoder, info, _ ->
        decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
        decoder.isUnpremultipliedRequired = true
        val count = info.size.width.toLong() * info.size.height
        var sample = 1
        while (count / (sample * sample) > MOST_PIXELS) sample++
        if (sample > 1) decoder.setTargetSampleSize(sample)
    }

    private fun pixels(bitmap: Bitmap): Pixels {
        val plain = if (bitmap.config == Bitmap.Config.ARGB_8888) bitmap else bitmap.copy(Bitmap.Config.ARGB_8888, false)
        val bytes = ByteArray(4 * plain.width * plain.height)
        plain.copyPixelsToBuffer(ByteBuffer.wrap(bytes)) // in the order red, green, blue, alpha
        return Pixels(plain.width, plain.height, 4, bytes)
    }

    private fun thumbnail(bitmap: Bitmap): Bitmap {
        bitmap.isPremultiplied = true // else it cannot be drawn
        val scale = min(1.0, 1024.0 / max(bitmap.width, bitmap.height))
        val width = max(1, (bitmap.width * scale).toInt())
        return Bitmap.createScaledBitmap(bitmap, width, max(1, (bitmap.height * scale).toInt()), true)
    }

    /** Runs what may fail, and shows why it did. */
    private fun tell(work: () -> Unit) {
        try {
            work()
        } catch (error: Exception) {
            runOnUiThread { answers.text = getString(R.string.failed, error.message ?: error.javaClass.simpleName) }
        } catch (_: OutOfMemoryError) {
            runOnUiThread { answers.setText(R.string.no_memory) }
        }
    }

    private companion object {
        const val CHOOSE = 1
        const val TAKE = 2
        const val MOST_PIXELS = 50_000_000L // larger photos are read at half the size, or a third, ...
    }
}
