//go:build soak

package audit_test

const soaking = true
