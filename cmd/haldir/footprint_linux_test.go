package main

import (
	"os"
	"regexp"
	"strconv"
	"testing"
)

// It runs beside no other test, which would map pages meanwhile.
func TestBeginningsAreUnmapped(t *testing.T) {
	mapped := func() int {
		t.Helper()
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		kib, err := strconv.Atoi(string(regexp.MustCompile(`RssFile:\s+(\d+)`).FindSubmatch(status)[1]))
		if err != nil {
			t.Fatal(err)
		}
		return kib
	}
	mapped() // once, so that what it needs itself is there
	before := mapped()
	unmapBeginnings()
	if after := mapped(); after > before*3/4 {
		t.Errorf("%d KiB of files were mapped, and %d KiB are still", before, after)
	}
}
