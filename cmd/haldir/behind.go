package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/haldir-mcp/haldir/internal/config"
)

// own is the path of the config as [config.BehindVar] has it; "" if there is no file.
func (a *app) own() string {
	if a.cfg == nil || a.cfg.Path == "" {
		return ""
	}
	path, err := filepath.Abs(a.cfg.Path)
	if err != nil {
		return a.cfg.Path
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return path
}

// behind is what the haldirs that this one starts get in [config.BehindVar].
func (a *app) behind() []string {
	const sep = string(os.PathListSeparator)
	list := strings.Trim(os.Getenv(config.BehindVar)+sep+a.own(), sep)
	if list == "" {
		return nil
	}
	return []string{config.BehindVar + "=" + list}
}

// behindItself is the error of a haldir that one which serves the same config has started, at
// whatever remove: it would start another one, and so on without end.
func (a *app) behindItself() error {
	const sep = string(os.PathListSeparator)
	own := a.own()
	if own == "" || !strings.Contains(sep+os.Getenv(config.BehindVar)+sep, sep+own+sep) {
		return nil
	}
	return &exit{code: exitUsage, err: fmt.Errorf("haldir is its own upstream: take it out of the upstreams of %s, or have it serve another config there (--config)", own)}
}
