package main

import "context"

// suspendable has nothing to do: Windows knows no Ctrl-Z.
func (*app) suspendable(context.Context) (end func()) { return func() {} }
