package main

// Main lets the tests run themselves as haldir.
func Main() { main() }

// News is what a shipper waits by.
var News = news
