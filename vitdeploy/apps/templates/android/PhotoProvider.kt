package org.vitdeploy.classify

import android.content.ContentProvider
import android.content.ContentValues
import android.content.Context
import android.database.Cursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import java.io.File

/** The one file that the camera app writes its photo to. Only an app that was handed its address reaches it. */
class PhotoProvider : ContentProvider() {
    override fun onCreate(): Boolean = true

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor =
        ParcelFileDescriptor.open(file(requireNotNull(context)), ParcelFileDescriptor.parseMode(mode))

    override fun getType(uri: Uri): String = "image/jpeg"

    override fun query(uri: Uri, columns: Array<String>?, which: String?, of: Array<String>?, order: String?): Cursor? = null

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun update(uri: Uri, values: ContentValues?, which: String?, of: Array<String>?): Int = 0

    override fun delete(uri: Uri, which: String?, of: Array<String>?): Int = 0

    companion object {
        fun file(context: Context): File = File(context.cacheDir, "photo.jpg")

        fun uri(context: Context): Uri = Uri.parse("content://${context.packageName}.photo/photo.jpg")
    }
}
