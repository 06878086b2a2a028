package main

import (
	"fmt"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/haldir-mcp/haldir/examples/securitytools"
)

const coreConfig = `version: 1
session: {agent_id: tester}
upstreams:
  - {name: tools, url: "%s"}
costs:
  - {tools: [buy_report], from_argument: /amount}
policies:
  - {type: deny, tools: [delete_*, drop_table]}
  - {type: spend_limit, max_usd: 10}
`

// TestCore runs the scripts that hold the main job: each verb against a real
// server over streamable HTTP.
func TestCore(t *testing.T) {
	upstream := httptest.NewServer(securitytools.Handler())
	t.Cleanup(upstream.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/core",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			config := fmt.Sprintf(coreConfig, upstream.URL+"/mcp")
			if err := os.WriteFile(env.WorkDir+"/haldir.yaml", []byte(config), 0o600); err != nil {
				return err
			}
			env.Setenv("HALDIR_STATE_DIR", env.WorkDir+"/state")
			env.Setenv("HALDIR_CONFIG", env.WorkDir+"/haldir.yaml")
			env.Setenv("HOME", env.WorkDir)
			return nil
		},
	})
}
