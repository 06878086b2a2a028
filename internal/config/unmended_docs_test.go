//go:build unmended

package config

func init() { gaps = nil }
