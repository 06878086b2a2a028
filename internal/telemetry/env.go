package telemetry

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/net/http/httpguts"
)

// Config is what the environment says. A nil endpoint is a signal that is not sent.
type Config struct {
	Traces, Metrics, Logs *Endpoint
	Interval              time.Duration // between two exports of metrics
	Batches               Batches
	// NoLogs is what turns the logs off although there may be an endpoint for them; "" if there
	// is only none.
	NoLogs string
	about  []attribute.KeyValue // what the environment says of this process
}

// Batches says how traces wait to be sent.
type Batches struct {
	Queue, Batch   int           // spans: that wait at most, and of one request
	Delay, Timeout time.Duration // from one request to the next, and of one with its retries
}

// Off reports whether nothing is sent.
func (c *Config) Off() bool { return c.Traces == nil && c.Metrics == nil && c.Logs == nil }

// defaultEndpoint is where a collector is if an exporter was asked for by name only.
const (
	defaultEndpoint = "http://localhost:4318"
	defaultTimeout  = 10 * time.Second
	defaultInterval = time.Minute
)

// What the SDK has for batches by default, and bounds: it would make any queue that it is
// told to, and panic if it cannot, or send without a pause.
const (
	defaultQueue, maxQueue = 2048, 1 << 16
	defaultBatch           = 512
	defaultDelay, minDelay = 5 * time.Second, 10 * time.Millisecond
	defaultSpansTimeout    = 30 * time.Second
	// noLimit is what a timeout of 0 is, by which OpenTelemetry means none: with none at all a
	// collector that hangs would be waited for until the end.
	noLimit = 10 * time.Minute
)

// Read reads the variables of the OpenTelemetry specification that concern exporters, batches
// and the resource; those about sampling and limits are read by its SDK. A signal whose
// variables cannot be followed is not sent, and the error says which and why.
func Read(getenv func(string) string) (c Config, err error) {
	if strings.EqualFold(getenv("OTEL_SDK_DISABLED"), "true") {
		return Config{NoLogs: "OTEL_SDK_DISABLED"}, nil
	}
	if getenv("OTEL_LOGS_EXPORTER") == "none" {
		c.NoLogs = "OTEL_LOGS_EXPORTER"
	}
	var errs []error
	for _, s := range []struct {
		name, path string
		to         **Endpoint
	}{{"TRACES", "/v1/traces", &c.Traces}, {"METRICS", "/v1/metrics", &c.Metrics}, {"LOGS", "/v1/logs", &c.Logs}} {
		e, err := read(getenv, s.name, s.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s are not sent: %w", strings.ToLower(s.name), err))
			continue
		}
		*s.to = e
	}
	if c.Off() { // what is wrong with the rest harms nobody
		return c, errors.Join(errs...)
	}
	c.Interval, err = millis(getenv, "OTEL_METRIC_EXPORT_INTERVAL", 1, defaultInterval)
	errs = append(errs, byDefault(err))
	c.Batches, err = batches(getenv)
	errs = append(errs, err)
	if c.Metrics != nil {
		errs = append(errs, unfollowed(getenv))
	}
	if c.Traces != nil {
		errs = append(errs, limits(getenv))
	}
	c.about, err = about(getenv)
	return c, errors.Join(append(errs, err)...)
}

// about is what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say. What is wrong is left out,
// and named by its place: it may be anything.
func about(getenv func(string) string) (list []attribute.KeyValue, err error) {
	n := 0
	for pair := range strings.SplitSeq(getenv("OTEL_RESOURCE_ATTRIBUTES"), ",") {
		n++
		if strings.TrimSpace(pair) == "" {
			continue
		}
		key, value, found := strings.Cut(pair, "=")
		key = strings.TrimSpace(key)
		value, bad := url.PathUnescape(strings.TrimSpace(value))
		if !found || key == "" || bad != nil {
			err = errors.Join(err, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES must be name=value pairs with commas between them, and %%25 for a percent sign; number %d is none and left out", n))
			continue
		}
		list = append(list, attribute.String(key, value))
	}
	if name := strings.TrimSpace(getenv("OTEL_SERVICE_NAME")); name != "" {
		list = append(list, attribute.String("service.name", name)) // which counts before the one above
	}
	return list, err
}

// unfollowed tells of what metrics are asked to be and are not.
func unfollowed(getenv func(string) string) (err error) {
	const temporality, timeout = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "OTEL_METRIC_EXPORT_TIMEOUT"
	if v := getenv(temporality); v != "" && !strings.EqualFold(v, "cumulative") {
		err = fmt.Errorf("%s is %q; haldir's metrics are cumulative, and are sent so", temporality, v)
	}
	if getenv(timeout) != "" {
		err = errors.Join(err, fmt.Errorf("%s is not followed; OTEL_EXPORTER_OTLP_METRICS_TIMEOUT bounds each export", timeout))
	}
	return err
}

// limits tells of limits of spans that the SDK takes as not set, without a word.
func limits(getenv func(string) string) (err error) {
	for _, name := range []string{
		"OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_ATTRIBUTE_COUNT_LIMIT",
	} {
		v := getenv(name)
		if _, wrong := strconv.Atoi(v); v != "" && wrong != nil {
			err = errors.Join(err, byDefault(fmt.Errorf("%s is %q and must be a whole number", name, v)))
		}
	}
	return err
}

// batches has a default for what is wrong.
func batches(getenv func(string) string) (b Batches, err error) {
	queue, noQueue := within(getenv, "OTEL_BSP_MAX_QUEUE_SIZE", 1, maxQueue, defaultQueue)
	batch, noBatch := within(getenv, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1, queue, min(defaultBatch, queue))
	delay, noDelay := millis(getenv, "OTEL_BSP_SCHEDULE_DELAY", 0, defaultDelay)
	timeout, noTimeout := limit(getenv, "OTEL_BSP_EXPORT_TIMEOUT", defaultSpansTimeout)
	return Batches{int(queue), int(batch), max(delay, minDelay), timeout}, errors.Join(byDefault(noQueue), byDefault(noBatch), byDefault(noDelay), byDefault(noTimeout))
}

func byDefault(err error) error {
	if err != nil {
		err = fmt.Errorf("%w; it is taken as not set", err)
	}
	return err
}

func read(getenv func(string) string, signal, path string) (*Endpoint, error) {
	// The variable of the signal counts before that of all.
	of := func(name string) (value, from string) {
		from = "OTEL_EXPORTER_OTLP_" + signal + "_" + name
		if v := getenv(from); v != "" {
			return v, from
		}
		from = "OTEL_EXPORTER_OTLP_" + name
		return getenv(from), from
	}
	where, from := of("ENDPOINT")
	switch chosen := getenv("OTEL_" + signal + "_EXPORTER"); chosen {
	case "none":
		return nil, nil
	case "":
		if where == "" {
			return nil, nil
		}
	case "otlp":
		if where == "" {
			where, from = defaultEndpoint, "OTEL_EXPORTER_OTLP_ENDPOINT"
		}
	default:
		return nil, fmt.Errorf("OTEL_%s_EXPORTER is %q; haldir knows otlp and none", signal, chosen)
	}
	if p, from := of("PROTOCOL"); p != "" && p != "http/protobuf" {
		return nil, fmt.Errorf("%s is %q; haldir speaks http/protobuf, which collectors take on port 4318", from, p)
	}
	u, err := url.Parse(where)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s must be a URL that begins with http:// or https://", from) // it may have a secret in it
	}
	if !strings.Contains(from, signal) { // the base of all signals
		u = u.JoinPath(path)
	} else if u.Path == "" {
		u.Path = "/"
	}
	e := &Endpoint{url: u.String(), name: shown(u), header: http.Header{}}
	_, from = of("TIMEOUT")
	if e.timeout, err = limit(getenv, from, defaultTimeout); err != nil {
		return nil, err
	}
	switch z, from := of("COMPRESSION"); z {
	case "gzip":
		e.gzip = true
	case "", "none":
	default:
		return nil, fmt.Errorf("%s is %q; haldir knows gzip and none", from, z)
	}
	headers, from := of("HEADERS")
	for pair := range strings.SplitSeq(headers, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if !ok || err != nil {
			return nil, fmt.Errorf("%s must be name=value pairs with commas between them", from)
		}
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) { // either may be secret
			return nil, fmt.Errorf("%s has a name or a value that no header of HTTP can have, such as a space in a name or the end of a line", from)
		}
		e.header.Set(name, value)
	}
	conf, err := trust(of)
	if err != nil {
		return nil, err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck,forcetypeassert // net/http says that it is one
	transport.TLSClientConfig = conf
	e.client = &http.Client{Transport: transport, Timeout: e.timeout, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse // the headers are for this server only
	}}
	return e, nil
}

// shown is a URL without what may be secret: of anything but the host and the usual paths only
// a hash, which tells two endpoints apart.
func shown(u *url.URL) string {
	name := u.Scheme + "://" + u.Host + "/"
	switch path := strings.TrimPrefix(u.EscapedPath(), "/"); path { // JoinPath leaves the slash out
	case "v1/traces", "v1/metrics", "v1/logs":
		name += path
	}
	if name == u.String() {
		return name
	}
	sum := sha256.Sum256([]byte(u.String()))
	return name + "#" + hex.EncodeToString(sum[:4])
}

// trust reads the certificates.
func trust(of func(string) (value, from string)) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if path, from := of("CERTIFICATE"); path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", from, err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: there is no certificate in %s", from, path)
		}
	}
	path, from := of("CLIENT_CERTIFICATE")
	key, _ := of("CLIENT_KEY")
	if path != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(path, key)
		if err != nil {
			return nil, fmt.Errorf("%s and its key: %w", from, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

// limit reads a timeout.
func limit(getenv func(string) string, name string, otherwise time.Duration) (time.Duration, error) {
	d, err := millis(getenv, name, 0, otherwise)
	if d == 0 {
		d = noLimit
	}
	return d, err
}

// millis reads a number of milliseconds.
func millis(getenv func(string) string, name string, least int64, otherwise time.Duration) (time.Duration, error) {
	n, err := within(getenv, name, least, math.MaxInt32, otherwise.Milliseconds())
	if err != nil {
		err = fmt.Errorf("%w, in milliseconds", err)
	}
	return time.Duration(n) * time.Millisecond, err
}

// within reads a number that has bounds.
func within(getenv func(string) string, name string, least, most, otherwise int64) (int64, error) {
	text := getenv(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return otherwise, fmt.Errorf("%s is %q and must be a whole number from %d to %d", name, text, least, most)
	}
	return n, nil
}
