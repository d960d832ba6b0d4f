-- Calls a far end for what waits.
call_far_end()
return {'ok'}
