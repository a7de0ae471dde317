"""One self-contained page of HTML that plays a video with its masks."""
