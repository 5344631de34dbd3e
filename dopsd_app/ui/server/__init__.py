"""What stands between the page and everybody who asks the server."""
