package policy

import (
	"strings"
	"unicode"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// words returns the words of a name in lower case, however it puts them together: delete_file,
// deleteFile, FILE-DELETE and HTTPDelete have the word delete, and undeleted has not.
func words(name string) (out []string) {
	runes, start := []rune(name), 0
	end := func(i int) {
		if i > start {
			out = append(out, strings.ToLower(string(runes[start:i])))
		}
	}
	for i, r := range runes {
		switch {
		case !unicode.IsLetter(r) && !unicode.IsMark(r):
			end(i)
			start = i + 1
		case i > start && unicode.IsUpper(r) && (!unicode.IsUpper(runes[i-1]) || i+1 < len(runes) && unicode.IsLower(runes[i+1])):
			end(i)
			start = i
		}
	}
	end(len(runes))
	return out
}

func celWords(name ref.Val) ref.Val {
	s, ok := name.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(name)
	}
	return types.NewStringList(types.DefaultTypeAdapter, words(string(s)))
}
