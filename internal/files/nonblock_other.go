//go:build !unix

package files

// nonblock is nothing: there are no pipes among the files.
const nonblock = 0
