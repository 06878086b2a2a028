module github.com/haldir-mcp/haldir/packaging

go 1.26.0

replace github.com/haldir-mcp/haldir => ../
