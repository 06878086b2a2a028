package console

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/haldir-mcp/haldir/internal/console/api"
)

// file is one file of the page.
type file struct {
	text []byte
	kind string
	tag  string
}

// kinds are told here, not by the system, whose tables differ.
var kinds = map[string]string{
	".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml",
	".json": "application/json", ".png": "image/png", ".woff2": "font/woff2",
}

// readFiles reads what the page is made of. It is small, and so is what is served of it:
// exactly these files, by exactly these names.
func readFiles(from fs.FS) (map[string]file, error) {
	files := map[string]file{}
	err := fs.WalkDir(from, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(from, name)
		if err != nil {
			return err
		}
		kind := kinds[path.Ext(name)]
		if kind == "" {
			kind = mime.TypeByExtension(path.Ext(name))
		}
		if kind == "" {
			return fmt.Errorf("the page has a file of no known kind: %s", name)
		}
		sum := sha256.Sum256(text)
		files[name] = file{text, kind, `"` + hex.EncodeToString(sum[:12]) + `"`}
		return nil
	})
	return files, err
}

// file serves one of them. They are no secret: anybody can read them in haldir's source.
func (s *Server) file(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/console/")
	if name == "" {
		name = "index.html"
	}
	f, ok := s.files[name]
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		api.NewProblem(http.StatusMethodNotAllowed, "method", "the page can only be read").Write(w)
		return
	case !ok:
		api.NewProblem(http.StatusNotFound, "not-found", "the page has no such file").Write(w)
		return
	}
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("ETag", f.tag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.text))
}
