//go:build !linux

package main

// unmapBeginnings is for Linux: other systems have no way for it, or need none.
func unmapBeginnings() {}
