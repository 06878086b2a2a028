package main

// Main lets the tests run themselves as haldir.
func Main() { main() }
