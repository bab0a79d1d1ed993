"""Guards of the ledger and of the staff's log, in the database: no page or script gets around them with ordinary SQL.

- An entry moves the balance itself, in the same statement, after it was checked against the entry it resolves.
- A balance cannot be changed in any other way, and is what the newest entry says when a transaction commits; an entry cannot be changed, deleted or truncated.
- A transfer counts only together with its other half, checked when the transaction commits.
- A merge of wallets can be undone once, and not be changed or deleted.
- A row of the staff's log cannot be changed, deleted or truncated; one of the security log not changed.
"""

from django.db import migrations

# A purchase has one refund that stands: another one may follow only when an adjust took the last one back. The wallet's
# row is locked before that is looked at, so two at once cannot both pass. The function runs with the rights of its owner:
# the role that serves may not write a balance.
ENTRIES = """
CREATE FUNCTION accounts_apply_entry() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
DECLARE
    wallet accounts_creditaccount%ROWTYPE;
    origin accounts_credittransaction%ROWTYPE;
    expected text;
BEGIN
    SELECT * INTO wallet FROM accounts_creditaccount WHERE id = NEW.account_id FOR UPDATE;
    IF NEW.resolves_id IS NOT NULL THEN
        SELECT * INTO origin FROM accounts_credittransaction WHERE id = NEW.resolves_id;
        expected := CASE NEW.kind WHEN 'capture' THEN 'reserve' WHEN 'release' THEN 'reserve'
                                  WHEN 'refund' THEN 'capture' WHEN 'purchase_refund' THEN 'purchase'
                                  WHEN 'adjust' THEN 'purchase_refund' END;
        IF origin.kind IS DISTINCT FROM expected THEN
            RAISE EXCEPTION 'ledger: a % cannot resolve a %', NEW.kind, origin.kind USING ERRCODE = 'check_violation';
        END IF;
        IF origin.account_id <> NEW.account_id OR origin.reference IS DISTINCT FROM NEW.reference THEN
            RAISE EXCEPTION 'ledger: % resolves an entry of another account or job', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF (NEW.kind IN ('capture', 'release') AND NEW.held_delta <> -origin.held_delta)
           OR (NEW.kind IN ('refund', 'purchase_refund', 'adjust') AND NEW.posted_delta <> -origin.posted_delta) THEN
            RAISE EXCEPTION 'ledger: a % is for the whole amount', NEW.kind USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.kind = 'purchase_refund' AND EXISTS (
            SELECT 1 FROM accounts_credittransaction earlier
            WHERE earlier.kind = 'purchase_refund' AND earlier.resolves_id = NEW.resolves_id AND NOT EXISTS (
                SELECT 1 FROM accounts_credittransaction back WHERE back.kind = 'adjust' AND back.resolves_id = earlier.id
            )
        ) THEN
            RAISE EXCEPTION 'ledger: this purchase is refunded already' USING ERRCODE = 'unique_violation';
        END IF;
    END IF;
    NEW.posted_after := wallet.posted + NEW.posted_delta;
    NEW.held_after := wallet.held + NEW.held_delta;
    UPDATE accounts_creditaccount SET posted = NEW.posted_after, held = NEW.held_after WHERE id = NEW.account_id;
    RETURN NEW;
END $$;

CREATE TRIGGER apply_entry BEFORE INSERT ON accounts_credittransaction
    FOR EACH ROW EXECUTE FUNCTION accounts_apply_entry();

CREATE INDEX purchase_refunds_of ON accounts_credittransaction (resolves_id) WHERE kind = 'purchase_refund';

CREATE FUNCTION accounts_check_transfer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM accounts_credittransaction other
        WHERE other.kind = 'transfer' AND other.reference = NEW.reference AND other.account_id = NEW.counterpart_id
          AND other.counterpart_id = NEW.account_id AND other.posted_delta = -NEW.posted_delta
    ) THEN
        RAISE EXCEPTION 'ledger: a transfer needs its other half' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER check_transfer AFTER INSERT ON accounts_credittransaction DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.kind = 'transfer') EXECUTE FUNCTION accounts_check_transfer();
"""

BALANCES = """
CREATE FUNCTION accounts_guard_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.posted <> 0 OR NEW.held <> 0 THEN
            RAISE EXCEPTION 'ledger: an account opens empty' USING ERRCODE = 'check_violation';
        END IF;
    ELSIF NEW.id <> OLD.id OR NEW.user_id <> OLD.user_id THEN
        RAISE EXCEPTION 'ledger: an account keeps its owner' USING ERRCODE = 'check_violation';
    ELSIF (NEW.posted <> OLD.posted OR NEW.held <> OLD.held) AND pg_trigger_depth() < 2 THEN
        -- A client's own statement runs at depth 1, apply_entry's update deeper, and so would another trigger's: what
        -- holds is that each balance is the newest entry's, which check_balance sees to at the end.
        RAISE EXCEPTION 'ledger: a balance moves only through an entry' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER guard_balance BEFORE INSERT OR UPDATE ON accounts_creditaccount
    FOR EACH ROW EXECUTE FUNCTION accounts_guard_balance();

CREATE FUNCTION accounts_check_balance() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    wallet accounts_creditaccount%ROWTYPE;
    newest accounts_credittransaction%ROWTYPE;
BEGIN
    SELECT * INTO wallet FROM accounts_creditaccount WHERE id = NEW.id;
    SELECT * INTO newest FROM accounts_credittransaction WHERE account_id = NEW.id ORDER BY id DESC LIMIT 1;
    IF (wallet.posted, wallet.held) IS DISTINCT FROM (newest.posted_after, newest.held_after) THEN
        RAISE EXCEPTION 'ledger: a balance is what its newest entry says' USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE CONSTRAINT TRIGGER check_balance AFTER UPDATE ON accounts_creditaccount DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.posted <> OLD.posted OR NEW.held <> OLD.held) EXECUTE FUNCTION accounts_check_balance();
"""

MERGES = """
CREATE FUNCTION accounts_guard_merge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.undone_at IS NULL AND NEW.undone_at IS NOT NULL AND (
        (OLD.id, OLD.source_id, OLD.target_id, OLD.after_entry, OLD.moved, OLD.stayed, OLD.brought_welcome, OLD.made_at)
        = (NEW.id, NEW.source_id, NEW.target_id, NEW.after_entry, NEW.moved, NEW.stayed, NEW.brought_welcome, NEW.made_at)
    ) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'ledger: a merge can be undone once, and not be changed' USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER only_undone BEFORE UPDATE ON accounts_walletmerge FOR EACH ROW EXECUTE FUNCTION accounts_guard_merge();
"""

NOTHING_GOES = """
CREATE FUNCTION accounts_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'ledger: % on % is not allowed; correct with another entry', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON accounts_credittransaction
    FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_credittransaction
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_delete BEFORE DELETE ON accounts_creditaccount
    FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_creditaccount
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_delete BEFORE DELETE ON accounts_walletmerge
    FOR EACH ROW EXECUTE FUNCTION accounts_refuse();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_walletmerge
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_refuse();
"""

STAFF_LOG = """
CREATE FUNCTION accounts_keep_audit_events() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'log of acts: % is not allowed', TG_OP USING ERRCODE = 'check_violation';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON accounts_auditevent
    FOR EACH ROW EXECUTE FUNCTION accounts_keep_audit_events();
CREATE TRIGGER no_update BEFORE UPDATE ON accounts_securityevent
    FOR EACH ROW EXECUTE FUNCTION accounts_keep_audit_events();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts_auditevent
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_keep_audit_events();
"""

# The table of Django's cache, which `createcachetable` would make.
CACHE = """
CREATE TABLE accounts_cache (cache_key varchar(255) PRIMARY KEY, value text NOT NULL, expires timestamptz NOT NULL);
CREATE INDEX accounts_cache_expires ON accounts_cache (expires);
"""

# CASCADE takes the triggers along.
BACKWARD = """
DROP TABLE accounts_cache;
DROP INDEX purchase_refunds_of;
DROP FUNCTION accounts_apply_entry(), accounts_check_transfer(), accounts_guard_balance(), accounts_check_balance(), accounts_guard_merge(),
    accounts_refuse(), accounts_keep_audit_events() CASCADE;
"""


class Migration(migrations.Migration):
    dependencies = [("accounts", "0001_initial")]
    operations = [migrations.RunSQL([ENTRIES, BALANCES, MERGES, NOTHING_GOES, STAFF_LOG, CACHE], BACKWARD)]
