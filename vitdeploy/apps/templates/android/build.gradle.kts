plugins {
    // Compiles Kotlin too.
    id("com.android.application") version "@AGP@" apply false
}
