"""What every HTML report is made with: one base template and style, charts, thumbnails."""
