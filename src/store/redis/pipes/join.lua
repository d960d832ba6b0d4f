-- Who the visitor is.
return {why_not() or role}
