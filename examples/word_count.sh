#!/bin/sh
# An agent in plain shell: its payload is a JSON string, its result {"words": N}.
#
#   echo '"to be or not to be"' | examples/word_count.sh
#
# It does without jq: JSON has a string on one line, with white space in it escaped.
set -eu

payload=$(cat)
case $payload in
  '"'*'"') ;;
  *)
    echo "the payload must be a JSON string, like \"to be\"" >&2
    exit 1
    ;;
esac

# Escaped backslashes first, so that the n of \\n is not taken for a line's end.
words=$(printf '%s\n' "$payload" | sed -e 's/^"//' -e 's/"$//' -e 's/\\\\/x/g' -e 's/\\[nrtf]/ /g' | wc -w)
printf '{"words": %d}\n' "$words"
