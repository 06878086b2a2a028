// Package telemetry sends what haldir does to an OpenTelemetry collector, over OTLP by HTTP
// and protobuf: a trace of each governed request, metrics, and the audit, as logs. It is
// configured by the standard environment variables alone, and where they name no endpoint
// nothing of it is made or started.
//
// Traces and metrics are of this process and may be lost: they wait in bounded memory. The
// audit is read from the ledger and is not: see [Ship].
//
// What is sent is protobuf by the slim definitions of OTLP and not by the official exporters,
// which bring gRPC into the program: 10 MB where this is one. docs/observability.md says what
// is sent, and what never is.
package telemetry
