plugins {
    id("com.android.application")
}

android {
    namespace = "org.vitdeploy.classify"
    compileSdk = 36

    defaultConfig {
        applicationId = "org.vitdeploy.classify"
        minSdk = 29
        targetSdk = 36
        versionCode = 1
        versionName = "1.0"
    }
}

dependencies {
    implementation("@RUNTIME@")
}
