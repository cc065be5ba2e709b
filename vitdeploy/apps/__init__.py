"""Sources of small apps around an artifact: Android Studio's and Xcode's projects, with its own preprocessing."""
