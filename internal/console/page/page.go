// Package page is the console's web page: plain HTML, CSS and ES modules as the
// browser takes them, without a build step and without anything from elsewhere. It
// knows the server by its REST API only.
package page

import (
	"embed"
	"io/fs"
)

//go:embed files
var files embed.FS

// Files returns what is served below /console/; index.html is the page. Nothing in it
// needs more of a Content-Security-Policy than
//
//	default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'
func Files() fs.FS {
	sub, err := fs.Sub(files, "files")
	if err != nil {
		panic("page: " + err.Error()) // the name above is a valid one
	}
	return sub
}
