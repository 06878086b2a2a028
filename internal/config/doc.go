// Package config turns haldir.yaml into validated values.
//
// The document is read strictly: a key that is not known, stands twice or is in
// the wrong place is an error with its file:line:column and a suggestion, and
// all mistakes are reported at once. Names that people choose (upstreams,
// headers, variables, tools) are always values, never keys, so that no layer
// can change their case or split them at dots.
//
// Scalar settings are layered by viper: flags, then HALDIR_* variables, then
// the file, then defaults. The package is the only one that knows viper.
package config
