//go:build !soak

package audit_test

// soaking tells that the tests run in their long form.
const soaking = false
