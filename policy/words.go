package policy

import (
	"slices"
	"strings"
	"unicode"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// words returns the words of a name in lower case, however it puts them together: delete_file,
// deleteFile, FILE-DELETE and HTTPDelete have the word delete, and undeleted has not. What is not
// to be seen in a name is in none of its words.
func words(name string) (out []string) {
	runes, start := slices.DeleteFunc([]rune(name), invisible), 0
	upper := false // the last letter
	end := func(i int) {
		if i > start {
			out = append(out, strings.ToLower(string(runes[start:i])))
		}
	}
	for i, r := range runes {
		if unicode.IsMark(r) {
			continue // it belongs to the letter before it
		}
		switch {
		case !unicode.IsLetter(r):
			end(i)
			start = i + 1
		case i > start && unicode.IsUpper(r) && (!upper || lowerNext(runes[i+1:])):
			end(i)
			start = i
		}
		upper = unicode.IsUpper(r)
	}
	end(len(runes))
	return out
}

// lowerNext reports whether the next letter is a small one.
func lowerNext(rest []rune) bool {
	i := slices.IndexFunc(rest, func(r rune) bool { return !unicode.IsMark(r) })
	return i >= 0 && unicode.IsLower(rest[i])
}

func invisible(r rune) bool {
	return unicode.In(r, unicode.Cf, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

func celWords(name ref.Val) ref.Val {
	s, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	return types.NewStringList(types.DefaultTypeAdapter, words(string(s)))
}
