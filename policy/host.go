package policy

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// maxHost bounds the text of a host. No name in the DNS is longer than 253 bytes; an
// agent may write each as %xx, or put in letters that IDNA drops.
const maxHost = 1000

var errNoHost = errors.New("a text is no address on the web whose host is beyond doubt")

// urlHost returns the host that a browser would go to for a URL of http, https, ws, wss or
// ftp, as the WHATWG URL standard has it: 169.254.169.254 also for http:0xa9.16689662 and
// for fullwidth digits. It is in lower case and ASCII, without a dot at its end; an
// IPv6 address is without brackets, and one that stands for an IPv4 address is that. What such a
// reader refuses is an error, and so is a URL of another scheme, which has no host or
// one that not all readers see. So is one that leads other readers elsewhere, such as
// http://good.com\@evil.com, which some take for evil.com.
func urlHost(text string) (string, error) {
	text = strings.TrimFunc(text, isOutside)
	scheme, rest, _ := strings.Cut(text, ":")
	if !slices.Contains([]string{"http", "https", "ws", "wss", "ftp"}, strings.ToLower(scheme)) {
		return "", errNoHost
	}
	rest = strings.TrimLeft(rest, "/")
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		rest = rest[:end]
	}
	user, name := "", rest
	if at := strings.IndexByte(rest, '@'); at >= 0 {
		user, name = rest[:at], rest[at+1:]
	}
	if strings.ContainsFunc(rest, func(r rune) bool { return r == '\\' || isOutside(r) }) || strings.Contains(name, "@") || strings.ContainsFunc(user, notASCII) {
		return "", errNoHost
	}
	inside, after, bracketed := strings.Cut(name, "]")
	switch {
	case len(name) > maxHost:
		return "", errNoHost
	case strings.HasPrefix(name, "["):
		if !bracketed || after != "" && after[0] != ':' || !isPort(strings.TrimPrefix(after, ":")) {
			return "", errNoHost
		}
		return ipv6(inside[1:])
	}
	name, port, _ := strings.Cut(name, ":")
	if !isPort(port) {
		return "", errNoHost
	}
	return domain(name)
}

// isOutside reports what browsers leave out of a URL at both its ends.
func isOutside(r rune) bool { return r <= ' ' }

func isPort(s string) bool {
	if s == "" {
		return true
	}
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// nat64 is where translators take IPv6 packets for an IPv4 address (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

func ipv6(s string) (string, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is6() || a.Zone() != "" {
		return "", errNoHost
	}
	b := a.As16()
	compatible := b[12] != 0 && [12]byte(b[:12]) == [12]byte{}
	if a.Is4In6() || compatible || nat64.Contains(a) {
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	return a.String(), nil
}

// names is how browsers read a name that is not ASCII: UTS #46, nontransitional, without
// the rules about hyphens and about which letters of ASCII a name may have.
var names = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(false), idna.StrictDomainName(false), idna.CheckHyphens(false))

// formerly is how readers of IDNA 2003 do, for whom ß is ss: another name.
var formerly = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.Transitional(true), idna.StrictDomainName(false), idna.CheckHyphens(false))

// disputed are letters that are others to browsers than to who knows Unicode as it was in 2003, as
// the codec of Python does, or as it was before 2023: the capital ß. Letters that all know are
// among them, since names with any of them are not met.
var disputed = &unicode.RangeTable{
	R16: []unicode.Range16{
		{Lo: 0x10fc, Hi: 0x10fc, Stride: 1},
		{Lo: 0x13a0, Hi: 0x13ff, Stride: 1},
		{Lo: 0x180f, Hi: 0x180f, Stride: 1},
		{Lo: 0x1c80, Hi: 0x1c8f, Stride: 1},
		{Lo: 0x1d2c, Hi: 0x1dbf, Stride: 1},
		{Lo: 0x1e9e, Hi: 0x1e9e, Stride: 1},
		{Lo: 0x2064, Hi: 0x2064, Stride: 1},
		{Lo: 0x2090, Hi: 0x209c, Stride: 1},
		{Lo: 0x213b, Hi: 0x213c, Stride: 1},
		{Lo: 0x2150, Hi: 0x2152, Stride: 1},
		{Lo: 0x2189, Hi: 0x2189, Stride: 1},
		{Lo: 0x2c7c, Hi: 0x2c7d, Stride: 1},
		{Lo: 0x2d6f, Hi: 0x2d6f, Stride: 1},
		{Lo: 0x321d, Hi: 0x33ff, Stride: 1},
		{Lo: 0xa69c, Hi: 0xa69d, Stride: 1},
		{Lo: 0xa770, Hi: 0xa770, Stride: 1},
		{Lo: 0xa7f0, Hi: 0xa7ff, Stride: 1},
		{Lo: 0xab5c, Hi: 0xabbf, Stride: 1},
		{Lo: 0xfa2e, Hi: 0xfaff, Stride: 1},
		{Lo: 0xfe10, Hi: 0xfe19, Stride: 1},
	},
	R32: []unicode.Range32{
		{Lo: 0x10780, Hi: 0x107bf, Stride: 1},
		{Lo: 0x1bca0, Hi: 0x1bca3, Stride: 1},
		{Lo: 0x1d400, Hi: 0x1d7ff, Stride: 1},
		{Lo: 0x1e030, Hi: 0x1e06d, Stride: 1},
		{Lo: 0x1f100, Hi: 0x1f2ff, Stride: 1},
		{Lo: 0x1fbf0, Hi: 0x1fbf9, Stride: 1},
		{Lo: 0xe0100, Hi: 0xe01ef, Stride: 1},
	},
}

func lastRune(s string) rune {
	r, _ := utf8.DecodeLastRuneInString(s)
	return r
}

func domain(name string) (string, error) {
	name, err := url.PathUnescape(name)
	if err != nil || !utf8.ValidString(name) {
		return "", errNoHost
	}
	name = lowerASCII(name)
	if strings.ContainsFunc(name, func(r rune) bool { return unicode.Is(disputed, r) }) {
		return "", errNoHost
	}
	foreign := strings.ContainsFunc(name, notASCII)
	if foreign || strings.HasPrefix(name, "xn--") || strings.Contains(name, ".xn--") {
		ascii, err := names.ToASCII(name)
		if err != nil {
			return "", errNoHost
		}
		if foreign {
			if former, err := formerly.ToASCII(name); err != nil || former != ascii {
				return "", errNoHost
			}
		}
		if strings.HasSuffix(ascii, ".") && !strings.ContainsRune(".。．｡", lastRune(name)) {
			return "", errNoHost // what stood there was xn-- alone
		}
		name = ascii
		// What is encoded twice, or is nothing encoded, changes once more.
		if again, err := names.ToASCII(name); err != nil || again != name {
			return "", errNoHost
		}
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`#%/:<>?@[\]^|`, r) }) {
		return "", errNoHost
	}
	name = strings.TrimRight(name, ".")
	parts := strings.Split(name, ".")
	if slices.Contains(parts, "") { // the DNS has no such name
		return "", errNoHost
	}
	last := parts[len(parts)-1]
	if _, number := ipv4Part(last); !number && strings.Trim(last, "0123456789") != "" {
		return name, nil
	}
	return ipv4(parts)
}

func notASCII(r rune) bool { return r >= utf8.RuneSelf }

func lowerASCII(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// ipv4 reads an address of up to four numbers, of which the last is all the bytes that the
// others leave.
func ipv4(parts []string) (string, error) {
	if len(parts) > 4 {
		return "", errNoHost
	}
	address := uint64(0)
	for i, p := range parts {
		n, ok := ipv4Part(p)
		below := 3 - i // bytes that are others'
		size := 1
		if i == len(parts)-1 {
			below, size = 0, 4-i
		}
		if !ok || n>>(8*size) != 0 {
			return "", errNoHost
		}
		address |= n << (8 * below)
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint64(nil, address)[4:])).String(), nil
}

// ipv4Part reads a number as C does: 0x is hexadecimal, 0 octal. One that is too large for
// any address is so here as well.
func ipv4Part(s string) (n uint64, ok bool) {
	base := 10
	switch {
	case strings.HasPrefix(s, "0x"):
		if s, base = s[2:], 16; s == "" {
			return 0, true
		}
	case len(s) > 1 && s[0] == '0':
		s, base = s[1:], 8
	}
	n, err := strconv.ParseUint(s, base, 64)
	return n, err == nil || errors.Is(err, strconv.ErrRange)
}
