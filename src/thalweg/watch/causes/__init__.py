"""One question a file: asked of the window of recent steps, answered with a diagnosis or nothing."""
