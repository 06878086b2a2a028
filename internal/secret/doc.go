// Package secret keeps secrets at rest: what people store with haldir secret set,
// and the tokens of upstreams.
//
// All of them are in one file, encrypted with age, whose key is in the system's
// keyring (Keychain, Credential Manager, Secret Service) or, where there is none, in a
// file beside it that its owner alone can read. Any number of processes may use a
// store at once: who reads sees the file before or after a change, who changes it
// holds a lock.
package secret
