"""What a person looks at: the terminal and the web page."""
